"""The readers, one file for each data set, from source files to rows."""
