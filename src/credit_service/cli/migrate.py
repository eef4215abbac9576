"""`credit-service migrate`."""

from credit_service.cli.common import DatabaseUrl, Json, settings_of, show, show_json, wrong


def migrate(json_: Json = False, database_url: DatabaseUrl = None) -> None:
    """Bring the database to the schema of this release, creating it where there is none.

    Stop the service first: an older one cannot work with a newer schema.
    """
    import asyncio

    from credit_service.settings import database_of
    from credit_service.storage.engine import StorageError
    from credit_service.storage.tables import REVISION

    database = database_of(settings_of(database_url=database_url))
    name = database.name
    try:
        existed = asyncio.run(database.exists())
        migrated = database.migrate()
    except StorageError as error:
        raise wrong(str(error)) from None
    if json_:
        show_json({"database": name, "schema": REVISION, "created": not existed, "migrated": migrated})
    elif not migrated:
        show(f"{name} is up to date (schema {REVISION}).")
    else:
        show(f"{name} was {'brought up to' if existed else 'created with'} schema {REVISION}.")
