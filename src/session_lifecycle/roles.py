"""The roles together: what they share, and where each of them reads."""

from session_lifecycle.activity import SessionActivityDb, SqlAlchemySessionActivityDb
from session_lifecycle.execution import Execution
from session_lifecycle.maintenance import SessionMaintenanceDb, SqlAlchemySessionMaintenanceDb
from session_lifecycle.payloads import PayloadPolicy
from session_lifecycle.pricing import PriceCatalogue
from session_lifecycle.reports import SessionReportsDb, SqlAlchemySessionReportsDb
from session_lifecycle.repository import SessionLifecycleDb, SqlAlchemySessionLifecycleDb
from session_lifecycle.settings import Settings
from session_lifecycle.writing import ItemWriter


class SessionRoles:
    """`lifecycle`, `activity`, `reports` and `maintenance`. Made by `SessionDatabase.bind` and `.primary`.

    The reads that dashboards make go to `reading`, which may lag behind. Everything else goes to `primary`: what is
    written, what an operator does, and the reads by which a runtime decides what to write.
    """

    def __init__(
        self,
        primary: Execution,
        reading: Execution,
        prices: PriceCatalogue,
        payloads: PayloadPolicy,
        settings: Settings,
    ) -> None:
        abandon_after = settings.abandon_after
        writer = ItemWriter(primary, prices, payloads)
        self.lifecycle: SessionLifecycleDb = SqlAlchemySessionLifecycleDb(primary, reading, writer, abandon_after)
        self.activity: SessionActivityDb = SqlAlchemySessionActivityDb(primary, reading, abandon_after)
        self.reports: SessionReportsDb = SqlAlchemySessionReportsDb(reading, abandon_after)
        self.maintenance: SessionMaintenanceDb = SqlAlchemySessionMaintenanceDb(primary, prices, abandon_after)
