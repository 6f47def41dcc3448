"""Benchmarks: one training step against its peers, and the memory of evaluation. See NOTES.md."""
