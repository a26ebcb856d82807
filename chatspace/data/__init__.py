"""Reading rows: inventory, staging, conversations."""
