import sys

from diffuse.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
