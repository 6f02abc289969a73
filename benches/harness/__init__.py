"""What `benches/bench.py` is made of: processes, floors, runs, results, the page and the comparison."""
