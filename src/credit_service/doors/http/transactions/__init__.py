"""The endpoints that post and read transactions, one file for each. `posting` turns a body into a command."""

from credit_service.doors.http.endpoints import declared_in
from credit_service.doors.http.transactions import adjust, batch, check, get, list, post, prices, reverse

ENDPOINTS = declared_in(get, list, post, batch, reverse, adjust, check, prices)
