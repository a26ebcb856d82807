"""From a run spec to a hashed Plan."""
