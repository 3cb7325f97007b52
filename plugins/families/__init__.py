"""Model families: networks with their own conditions, walk of a window, files and sizes, one folder each."""
