"""Images to cache, and the crops that are cut from them."""

from modeling_sit.data.crops import CropGroup, CropsDataset, DecodedImages, RandomCrops
from modeling_sit.data.sources import load_images

UNREADABLE = [1, 7]


def crops_of(folder, crop_scale=(0.2, 1.0), num_channels=3):
    cut = RandomCrops([CropGroup(2, (8, 8), tuple(crop_scale))], (3 / 4, 4 / 3))
    return CropsDataset(DecodedImages(load_images(str(folder)).train, num_channels, cut.draft_scale), cut)
