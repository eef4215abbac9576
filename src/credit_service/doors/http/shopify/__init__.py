"""The endpoints of Shopify: its webhooks, and the shops that are linked to merchants."""

from credit_service.doors.http.shopify.shops import get_shop, link_shop, unlink_shop
from credit_service.doors.http.shopify.webhooks import take_shopify_delivery

ENDPOINTS = (take_shopify_delivery, link_shop, get_shop, unlink_shop)
