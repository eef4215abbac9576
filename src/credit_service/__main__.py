"""`python -m credit_service` is `credit-service`."""

from credit_service.cli import main

main()
