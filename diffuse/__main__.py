import sys

from diffuse.cli import main

if __name__ == "__main__":
    sys.exit(main())
