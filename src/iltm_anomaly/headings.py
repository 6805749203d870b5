"""Columns of tables of results: the name of each value in `results.json`, in the order of the columns, and its heading."""

IMAGES = {
    "pixel_auroc": "pixel AUROC",
    "aupro": "AUPRO",
    "image_auroc": "image AUROC",
    "masked_fraction": "tokens masked",
    "masked_share_defect_tokens": "defect tokens masked",
    "masked_share_normal_tokens": "normal tokens masked",
}
VOLUMES = {
    "aupr": "AUPR",
    "aupro": "AUPRO",
    "best_dice": "best Dice",
    "pixel_auroc": "voxel AUROC",
    "lesion_sensitivity_at_2_fp": "lesions found at 2 false positives",
    "masked_fraction": "tokens masked",
    "masked_share_defect_tokens": "lesion tokens masked",
    "masked_share_normal_tokens": "normal tokens masked",
}
# In the terminal, in place of the longer ones above.
SHORT = {
    "lesion_sensitivity_at_2_fp": "lesions at 2 FP",
    "masked_fraction": "masked",
    "masked_share_defect_tokens": "of defect tokens",
    "masked_share_normal_tokens": "of normal tokens",
}
# The metrics that methods and rounds are compared by.
METRICS = ("pixel_auroc", "aupro", "image_auroc")
