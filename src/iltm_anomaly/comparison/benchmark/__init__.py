"""Every method of the paper's Table 2 on the same images: cells, the runner, and the table, plot and intervals made of them."""
