"""Images in: data sets (`mvtec`, `folder`, `hub`), `contamination`, `augmentation`, and a generated set (`synthetic`).

Nothing is imported here, so that reading an image does not wait for torch, nor a data set for scipy.
"""
