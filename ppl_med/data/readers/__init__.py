"""One data set a file: ``load_NAME`` reads a folder into the arrays that ``Batches`` takes."""
