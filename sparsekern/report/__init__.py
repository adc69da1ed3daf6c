"""`sparsekern report`: one self-contained HTML page for a run, or for a comparison of runs, from their files alone."""
