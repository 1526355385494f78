"""SessionRoles: the roles together, and the database that each of them reads."""

from session_lifecycle.activity import SessionActivityDb, SqlAlchemySessionActivityDb
from session_lifecycle.budgets import SessionBudgetsDb, SqlAlchemySessionBudgetsDb
from session_lifecycle.maintenance.role import SessionMaintenanceDb, SqlAlchemySessionMaintenanceDb
from session_lifecycle.postgres.execution import Execution
from session_lifecycle.pricing.catalogue import PriceCatalogue
from session_lifecycle.reports import SessionReportsDb, SqlAlchemySessionReportsDb
from session_lifecycle.repository import KnownSize, SessionLifecycleDb, SqlAlchemySessionLifecycleDb
from session_lifecycle.settings import Settings
from session_lifecycle.writing.payload_policy import PayloadPolicy


class SessionRoles:
    """The roles of one database or host transaction. Made by `SessionDatabase.bind` and `SessionDatabase.primary`.

    The reads of dashboards go to the execution `reading`, which may lag behind. All else goes to `primary`: writes,
    maintenance, and the reads by which a runtime decides what to write.

    Attributes:
        lifecycle: Writes sessions and reads them.
        activity: Reads what happened in sessions.
        reports: Reads figures.
        budgets: Limits, and reservations before a model is called.
        maintenance: The operator's jobs.
    """

    def __init__(
        self,
        primary: Execution,
        reading: Execution,
        prices: PriceCatalogue,
        payloads: PayloadPolicy,
        settings: Settings,
        size: KnownSize,
    ) -> None:
        abandon_after = settings.abandon_after
        self.lifecycle: SessionLifecycleDb = SqlAlchemySessionLifecycleDb(
            primary, reading, prices, payloads, abandon_after, size
        )
        self.activity: SessionActivityDb = SqlAlchemySessionActivityDb(primary, reading, abandon_after)
        self.reports: SessionReportsDb = SqlAlchemySessionReportsDb(reading, abandon_after)
        self.budgets: SessionBudgetsDb = SqlAlchemySessionBudgetsDb(primary, prices, payloads)
        self.maintenance: SessionMaintenanceDb = SqlAlchemySessionMaintenanceDb(primary, prices, abandon_after)
