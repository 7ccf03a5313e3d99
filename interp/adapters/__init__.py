"""Models of other libraries, written as the plain weights and hook names that this one works with."""
