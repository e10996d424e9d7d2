"""One figure a file: a pure step from value types to a small table, and a pure drawing step."""
