"""files, patterns, data sets -> documents."""
