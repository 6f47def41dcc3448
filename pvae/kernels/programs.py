"""The Bernoulli log-likelihood of a linear layer's outputs as Triton programs: no logit is ever written.

A program keeps some rows of one factor of the product and goes through the other's, tile by tile: a tile of logits is
made, used and forgotten, as in flash attention (Dao et al. 2022). `scores` keeps data and goes through pixels, `slopes`
keeps pixels and goes through data. What several programs make of one row is added by the caller, in a fixed order.

Arrays of Triton's have sizes that are powers of two: a hidden layer's units are kept in up to three such pieces, of
A, B and C units, the last two of which may be none. Units, rows and pixels beyond the last are zeros.
"""
# ruff: noqa: ANN001, ANN201, ANN202, RUF005 (Triton reads annotations, and tuples are added there)

from __future__ import annotations

try:
    import triton
    import triton.language as tl

    jit = triton.jit
    program = triton.jit(do_not_specialize=["n", "data", "tiles"])  # else compiled anew for every number of rows
except ImportError:  # a torch for CPUs comes without

    def jit(function):
        """Leave it as it is: nobody calls it."""
        return function

    program = jit


@program
def scores(
    h,
    w,
    b,
    x,
    s,
    u,
    n,
    data,
    tiles,
    H: tl.constexpr,
    D: tl.constexpr,
    A: tl.constexpr,
    B: tl.constexpr,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    GRADIENT: tl.constexpr,
    DOTS: tl.constexpr,
):
    """s_n = sum_d x_nd l_nd - softplus(l_nd) and, for the gradient, u_n = sum_d (x_nd - sigmoid(l_nd)) w_d.

    Program (i, j) takes the i-th ROWS of h (n, H), and `tiles` tiles of TILE pixels of w (D, H) from the j-th on, to
    s (j, n) and u (j, n, H). Row n goes with datum n % data of x (data, D).
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < n
    hidden = _take(h, rows, n, H, A, B, C, DOTS)
    datum = (rows % data).to(tl.int64)
    total = tl.zeros((ROWS,), tl.float32)
    sums = _zeros(ROWS, A, B, C)
    first = tl.program_id(1) * tiles
    for tile in range(first, tl.minimum(first + tiles, tl.cdiv(D, TILE))):
        d = tile * TILE + tl.arange(0, TILE)
        there = d < D
        weights = _take(w, d, D, H, A, B, C, DOTS)
        logits = _product(hidden, weights, ROWS, TILE, DOTS) + tl.load(b + d, mask=there, other=0.0)[None, :]
        value = tl.load(x + datum[:, None] * D + d[None, :], mask=inside[:, None] & there[None, :], other=0.0)
        small = tl.exp(-tl.abs(logits))  # at most 1
        total += tl.sum(value * logits - tl.maximum(logits, 0.0), 1)
        # the sum of log(1 + small) by one logarithm: of at most TILE factors, none above 2, the product is a float32
        total -= tl.log(tl.reduce(tl.where(there[None, :], 1.0 + small, 1.0), 1, _times))
        if GRADIENT:
            sums = _add(value - tl.where(logits >= 0, 1.0, small) / (1.0 + small), weights, sums, DOTS)
    part = tl.program_id(1).to(tl.int64)
    tl.store(s + part * n + rows, total, mask=inside)
    if GRADIENT:
        _put(u + part * n * H, rows, n, sums, H, A, B, C)


@program
def slopes(
    g,
    h,
    w,
    b,
    x,
    dw,
    db,
    n,
    data,
    tiles,
    H: tl.constexpr,
    D: tl.constexpr,
    A: tl.constexpr,
    B: tl.constexpr,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    DOTS: tl.constexpr,
):
    """db_d = sum_n g_n (x_nd - sigmoid(l_nd)) and dw_d = sum_n g_n (x_nd - sigmoid(l_nd)) h_n.

    Program (i, j) takes the i-th ROWS pixels of w (D, H), and `tiles` tiles of TILE rows of h (n, H) from the j-th on,
    to dw (j, D, H) and db (j, D). The rest as for `scores`.
    """
    d = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = d < D
    weights = _take(w, d, D, H, A, B, C, DOTS)
    bias = tl.load(b + d, mask=there, other=0.0)
    total = tl.zeros((ROWS,), tl.float32)
    sums = _zeros(ROWS, A, B, C)
    first = tl.program_id(1) * tiles
    for tile in range(first, tl.minimum(first + tiles, tl.cdiv(n, TILE))):
        rows = tile * TILE + tl.arange(0, TILE)
        inside = rows < n
        hidden = _take(h, rows, n, H, A, B, C, DOTS)
        logits = _product(weights, hidden, ROWS, TILE, DOTS) + bias[:, None]
        datum = (rows % data).to(tl.int64)
        value = tl.load(x + datum[None, :] * D + d[:, None], mask=inside[None, :] & there[:, None], other=0.0)
        small = tl.exp(-tl.abs(logits))
        residual = value - tl.where(logits >= 0, 1.0, small) / (1.0 + small)
        residual *= tl.load(g + rows, mask=inside, other=0.0)[None, :]
        total += tl.sum(residual, 1)
        sums = _add(residual, hidden, sums, DOTS)
    part = tl.program_id(1).to(tl.int64)
    tl.store(db + part * D + d, total, mask=there)
    _put(dw + part * D * H, d, D, sums, H, A, B, C)


@jit
def _take(p, rows, limit, H: tl.constexpr, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr, DOTS: tl.constexpr):
    """Rows of an array (limit, H), in pieces."""
    pieces = (_load(p, rows, limit, H, 0, A, DOTS),)
    if B:
        pieces = pieces + (_load(p, rows, limit, H, A, B, DOTS),)
    if C:
        pieces = pieces + (_load(p, rows, limit, H, A + B, C, DOTS),)
    return pieces


@jit
def _load(p, rows, limit, H: tl.constexpr, START: tl.constexpr, SIZE: tl.constexpr, DOTS: tl.constexpr):
    k = START + tl.arange(0, SIZE)
    mask = (rows < limit)[:, None] & (k < H)[None, :]
    return _rounded(tl.load(p + rows.to(tl.int64)[:, None] * H + k[None, :], mask=mask, other=0.0), DOTS)


@jit
def _put(p, rows, limit, pieces, H: tl.constexpr, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr):
    """Write pieces to rows of an array (limit, H)."""
    _store(p, rows, limit, pieces[0], H, 0, A)
    if B:
        _store(p, rows, limit, pieces[1], H, A, B)
    if C:
        _store(p, rows, limit, pieces[2], H, A + B, C)


@jit
def _store(p, rows, limit, piece, H: tl.constexpr, START: tl.constexpr, SIZE: tl.constexpr):
    k = START + tl.arange(0, SIZE)
    mask = (rows < limit)[:, None] & (k < H)[None, :]
    tl.store(p + rows.to(tl.int64)[:, None] * H + k[None, :], piece.to(p.dtype.element_ty), mask=mask)


@jit
def _zeros(ROWS: tl.constexpr, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr):
    pieces = (tl.zeros((ROWS, A), tl.float32),)
    if B:
        pieces = pieces + (tl.zeros((ROWS, B), tl.float32),)
    if C:
        pieces = pieces + (tl.zeros((ROWS, C), tl.float32),)
    return pieces


@jit
def _product(kept, taken, ROWS: tl.constexpr, TILE: tl.constexpr, DOTS: tl.constexpr):
    """Rows times rows, (ROWS, TILE)."""
    found = tl.zeros((ROWS, TILE), tl.float32)
    for i in tl.static_range(len(kept)):
        found = tl.dot(kept[i], tl.trans(taken[i]), found, input_precision=DOTS)
    return found


@jit
def _add(factors, taken, sums, DOTS: tl.constexpr):
    """The sums plus factors (ROWS, TILE) times rows."""
    factors = _rounded(factors.to(taken[0].dtype), DOTS)
    pieces = (tl.dot(factors, taken[0], sums[0], input_precision=DOTS),)
    for i in tl.static_range(1, len(taken)):
        pieces = pieces + (tl.dot(factors, taken[i], sums[i], input_precision=DOTS),)
    return pieces


@jit
def _times(a, b):
    return a * b


@jit
def _rounded(value, DOTS: tl.constexpr):
    """Rounded to the ten bits that a tensor core reads of a float32: left alone it drops the rest, always downwards."""
    if DOTS == "tf32":
        bits = (value.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
        value = tl.where(value == value, bits.to(tl.float32, bitcast=True), value)
    return value
