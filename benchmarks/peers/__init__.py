"""``make bench-peers``: other engines of small boards beside this one. Writes ``docs/benchmarks-peers.md``.

They live in an environment of their own, ``.venv-peers``: ``convert.py`` and ``infer.py`` run there, and ``infer.py``
on emulated ARM.
"""
