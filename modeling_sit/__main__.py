"""`python -m modeling_sit COMMAND`: the same as `modeling-sit COMMAND`."""

from modeling_sit.cli.main import main

if __name__ == "__main__":
    main()
