from lwr.cli import main

main()
