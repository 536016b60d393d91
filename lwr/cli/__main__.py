from lwr.cli.app import main

main()
