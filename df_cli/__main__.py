"""`python -m df_cli`, which is what `accelerate launch -m df_cli` runs."""

from df_cli.main import main

main()
