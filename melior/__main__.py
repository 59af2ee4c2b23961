"""`python -m melior` and `torchrun -m melior` are the same program as `melior`."""

from melior.cli import main

if __name__ == "__main__":
    main()
