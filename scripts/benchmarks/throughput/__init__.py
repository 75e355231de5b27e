"""How fast pretraining is: the contenders, what is measured of them, and how it is shown."""
