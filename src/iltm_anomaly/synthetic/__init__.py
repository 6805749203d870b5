"""Generated data with known defects, which the demos train on: `dataset` makes images, `phantoms` makes volumes of PET."""
