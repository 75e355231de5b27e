"""Words of the programs' lines."""


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun, such as `1 image` or `1,000 images`.

    Args:
        number (`int`): How many, from 0.
        noun (`str`): What one is called.
        plural (`str`, *optional*): What several are called. Default: the noun with an s.
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
