"""Every method of the paper's Table 2 on the same images: a cell for each, and the tables, plots and intervals made of cells."""
