"""`credit-service migrate`."""

import json

import typer

from credit_service.cli.common import DatabaseUrl, Json, settings_of, wrong


def migrate(json_: Json = False, database_url: DatabaseUrl = None) -> None:
    """Bring the database to the schema of this release, creating it where there is none.

    Stop the service first: an older one cannot work with a newer schema.
    """
    from credit_service.storage import migrations
    from credit_service.storage.base import StorageError

    settings = settings_of(database_url=database_url)
    path = settings.database_path
    existed = path.exists()
    try:
        migrated = migrations.migrate(path)
        revision = migrations.head()
    except StorageError as error:
        raise wrong(str(error)) from None
    if json_:
        typer.echo(
            json.dumps({"database": str(path), "schema": revision, "created": not existed, "migrated": migrated})
        )
    elif not migrated:
        typer.echo(f"{path} is up to date (schema {revision}).")
    else:
        typer.echo(f"{path} was {'brought up to' if existed else 'created with'} schema {revision}.")
