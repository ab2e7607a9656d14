"""Readers: one file for each data set, from its source files to rows."""
