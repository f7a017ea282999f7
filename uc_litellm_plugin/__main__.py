"""`python -m uc_litellm_plugin` is `uc-litellm`."""

from .cli import main

main()
