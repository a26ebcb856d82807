"""The commands of the command line, by subject; `cli` registers them under their names."""
