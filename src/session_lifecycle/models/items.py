"""The unions `Item`, which `record` takes, and `Receipt`, which `record` returns for each item."""

from session_lifecycle.models.messages import Message
from session_lifecycle.models.runs import ActivityOutcome, Run, Step
from session_lifecycle.models.sessions import End, EndOutcome, Touch, TouchOutcome
from session_lifecycle.models.usage import UsageEvent, UsageReceipt

Item = Touch | UsageEvent | End | Run | Step | Message
Receipt = TouchOutcome | UsageReceipt | EndOutcome | ActivityOutcome
