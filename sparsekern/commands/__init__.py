"""What `sparsekern COMMAND` runs, a module a command; `sparsekern compare` has a package of its own."""
