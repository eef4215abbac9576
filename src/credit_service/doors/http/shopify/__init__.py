"""The endpoints of Shopify: its webhooks, and the shops that are linked to merchants."""

from credit_service.doors.http.endpoints import declared_in
from credit_service.doors.http.shopify import shops, webhooks

ENDPOINTS = declared_in(webhooks, shops)
