"""What the demos are made of: generated parts, fabric and PET phantoms, with their defects."""
