"""Functions of tensors as graphs: recorded through any Python, compiled, captured and replayed.

Knows nothing of training or of this package's programs: `svi` replays training steps with it, `cells` evaluation.

To a graph: `tracing` records what a function does, `values` says what Python may read meanwhile (`known` follows what
stays, `instead` does what need not be read), `supposed` what it may decide by, `lines` where.
The graph: `simplify` drops what is computed twice, `settle` and `pieces` cut a long one where it repeats itself,
`placement` leaves nothing on the CPU, `overlap` and `unfused` are for GPUs.
Run: `compiling` by inductor, `captured` as a CUDA graph; `precision`, `generators`; `turns` keeps threads apart.
Still right: `guards` finds what a program reaches in Python (`names`, `hooks`), `notes` and `members` compare it;
`held` copies data that are set anew.
"""
