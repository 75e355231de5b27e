"""What a process does once, so that those which are forked from it need not: see `forked_python.py`."""

from functools import wraps

import PIL.Image
import sklearn.linear_model  # noqa: F401
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from modeling_sit.data import dataset_forms

# Image formats are modules, too.
PIL.Image.init()
# The first figure finds the fonts.
figure = Figure()
figure.subplots().set_title("digits")
FigureCanvasAgg(figure).draw()

# 1,797 digits are encoded as PNG.
load = dataset_forms._load_digits
digits = load()


@wraps(load)
def load_once():
    return dict(digits)


dataset_forms._load_digits = load_once
