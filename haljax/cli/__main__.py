from haljax.cli import main

main()
