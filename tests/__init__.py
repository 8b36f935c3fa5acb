"""The tests; a package, so that `tests.shared` cannot be shadowed by another `tests`."""
