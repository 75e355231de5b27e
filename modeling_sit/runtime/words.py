"""Words of the programs' lines."""


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun, such as `1 image` or `1,000 images`.

    Args:
        number (`int`): How many, from 0.
        noun (`str`): What one is called.
        plural (`str`, *optional*): What several are called. Default: the noun with an s.
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def rounded(number: float, digits: int = 2) -> str:
    """A number with all digits of its whole part, such as `1,000` or `19`; a smaller one with so many digits, such as `2.5`.

    Args:
        number (`float`): From 0.
        digits (`int`, *optional*, defaults to 2): From 1.
    """
    return f"{number:,.0f}" if number >= 10 ** (digits - 1) else f"{number:.{digits}g}"
