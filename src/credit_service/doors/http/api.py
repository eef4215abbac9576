"""What an endpoint's file needs: declarations, calls and answers, pages, problems, and the parts of the service."""

from credit_service.doors.http.answers import (
    MERCHANT,
    AccountText,
    GrantText,
    Instant,
    MerchantText,
    ProblemShape,
    RequestId,
    TransactionText,
    Unset,
    answer,
    one,
)
from credit_service.doors.http.call import Answer, Call, Result
from credit_service.doors.http.endpoints import PREFIX, changes, endpoint, read_json
from credit_service.doors.http.ledger import Ledger, no_account, settle_due
from credit_service.doors.http.openapi import QUEUED, examples, headers
from credit_service.doors.http.pages import WHOLE, Cursor, Limit, Pager, Place, Since, Until, cursor_of, page_of
from credit_service.doors.http.parts import Check, Follow, Publishing, WebhookSender
from credit_service.doors.http.problems import Problem, of_faults, of_refusal
