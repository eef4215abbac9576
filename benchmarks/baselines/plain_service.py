"""A plain service of FastAPI and SQLAlchemy, written in the usual style.

A route takes a pydantic model, returns another model, and opens a session for each request. A posting selects the
account for update, looks up the idempotency key, adds the transaction, changes the balance and commits once. A read is
one SELECT, or two if it names a merchant. The service has its own tables with UUIDs, timestamps, foreign keys, and an
index for each query. It runs as our service does: uvicorn with uvloop and httptools, one worker, no access log, the
same PostgreSQL. It leaves out work that would make it slower: grants, events, hashes, limits, and the look-up of an API
key (it compares the bearer token with a constant).
"""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

import uvicorn
from fastapi import Depends, FastAPI, Header, HTTPException, Request
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import JSON, BigInteger, ForeignKey, Index, UniqueConstraint, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

KEY = "a-secret-that-callers-know"
INITIAL_CREDITS = 10**12


class Base(DeclarativeBase):
    """The tables."""


class Account(Base):
    """A merchant's credits."""

    __tablename__ = "plain_accounts"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    merchant_id: Mapped[UUID] = mapped_column(unique=True)
    balance: Mapped[int] = mapped_column(BigInteger, default=0)
    total_increases: Mapped[int] = mapped_column(BigInteger, default=0)
    total_decreases: Mapped[int] = mapped_column(BigInteger, default=0)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now(), onupdate=func.now())


class Transaction(Base):
    """One change of a balance."""

    __tablename__ = "plain_transactions"
    __table_args__ = (
        UniqueConstraint("account_id", "idempotency_key"),
        Index(None, "account_id", "created_at"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    account_id: Mapped[UUID] = mapped_column(ForeignKey(Account.id))
    operation_type: Mapped[str]
    transaction_type: Mapped[str]
    amount: Mapped[int] = mapped_column(BigInteger)
    balance_before: Mapped[int] = mapped_column(BigInteger)
    balance_after: Mapped[int] = mapped_column(BigInteger)
    idempotency_key: Mapped[str]
    reference_type: Mapped[str | None]
    reference_id: Mapped[str | None]
    details: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class NewAccount(BaseModel):
    """The body of a request that opens an account."""

    merchant_id: UUID


class ReferenceIn(BaseModel):
    """The reference of a posting."""

    type: str = Field(max_length=64)
    id: str = Field(max_length=255)


class NewTransaction(BaseModel):
    """The body of a posting."""

    merchant_id: UUID
    operation_type: Literal["INCREASE", "DECREASE"]
    transaction_type: Literal["USAGE", "MANUAL", "ORDER_PAID"]
    amount: int = Field(gt=0)
    reference: ReferenceIn | None = None
    metadata: dict[str, Any] | None = None


class AccountOut(BaseModel):
    """An account in a response."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    merchant_id: UUID
    balance: int
    created_at: datetime


class BalanceOut(BaseModel):
    """A balance in a response."""

    model_config = ConfigDict(from_attributes=True)

    merchant_id: UUID
    balance: int


class TransactionOut(BaseModel):
    """A transaction in a response."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    account_id: UUID
    operation_type: str
    transaction_type: str
    amount: int
    balance_before: int
    balance_after: int
    reference_type: str | None
    reference_id: str | None
    created_at: datetime


@asynccontextmanager
async def _running(app: FastAPI) -> AsyncIterator[None]:
    url = os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+asyncpg://", 1)
    engine = create_async_engine(url, pool_size=int(os.environ["POOL_SIZE"]), max_overflow=0)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    app.state.sessions = async_sessionmaker(engine, expire_on_commit=False)
    yield
    await engine.dispose()


app = FastAPI(lifespan=_running)


async def _session(request: Request) -> AsyncIterator[AsyncSession]:
    async with request.app.state.sessions() as session:
        yield session


async def _known(authorization: Annotated[str, Header()]) -> None:
    if authorization != f"Bearer {KEY}":
        raise HTTPException(401)


Session = Annotated[AsyncSession, Depends(_session)]


@app.post("/api/v1/credits/accounts", status_code=201, response_model=AccountOut, dependencies=[Depends(_known)])
async def open_account(body: NewAccount, session: Session) -> Account:
    """Open an account with credits."""
    account = Account(merchant_id=body.merchant_id, balance=INITIAL_CREDITS, total_increases=INITIAL_CREDITS)
    session.add(account)
    await session.commit()
    return account


@app.post(
    "/api/v1/credits/transactions", status_code=201, response_model=TransactionOut, dependencies=[Depends(_known)]
)
async def post_transaction(
    body: NewTransaction, idempotency_key: Annotated[str, Header()], session: Session
) -> Transaction:
    """Post one transaction."""
    wanted = select(Account).where(Account.merchant_id == body.merchant_id).with_for_update()
    account = await session.scalar(wanted)
    if account is None:
        raise HTTPException(404, "There is no such account")
    mine = (Transaction.account_id == account.id) & (Transaction.idempotency_key == idempotency_key)
    if (first := await session.scalar(select(Transaction).where(mine))) is not None:
        return first
    before = account.balance
    if body.operation_type == "DECREASE":
        if before < body.amount:
            raise HTTPException(402, "There are not enough credits")
        account.balance -= body.amount
        account.total_decreases += body.amount
    else:
        account.balance += body.amount
        account.total_increases += body.amount
    transaction = Transaction(
        account_id=account.id,
        operation_type=body.operation_type,
        transaction_type=body.transaction_type,
        amount=body.amount,
        balance_before=before,
        balance_after=account.balance,
        idempotency_key=idempotency_key,
        reference_type=body.reference.type if body.reference else None,
        reference_id=body.reference.id if body.reference else None,
        details=body.metadata,
    )
    session.add(transaction)
    try:
        await session.commit()
    except IntegrityError:
        raise HTTPException(409, "Another request has just posted this key") from None
    return transaction


async def _account(merchant_id: UUID, session: AsyncSession) -> Account:
    account = await session.scalar(select(Account).where(Account.merchant_id == merchant_id))
    if account is None:
        raise HTTPException(404, "There is no such account")
    return account


@app.get("/api/v1/credits/accounts/{merchant_id}", response_model=AccountOut, dependencies=[Depends(_known)])
async def get_account(merchant_id: UUID, session: Session) -> Account:
    """Read an account."""
    return await _account(merchant_id, session)


@app.get("/api/v1/credits/accounts/{merchant_id}/balance", response_model=BalanceOut, dependencies=[Depends(_known)])
async def get_balance(merchant_id: UUID, session: Session) -> Account:
    """Read a balance."""
    return await _account(merchant_id, session)


@app.get("/api/v1/credits/transactions/{id_}", response_model=TransactionOut, dependencies=[Depends(_known)])
async def get_transaction(id_: UUID, session: Session) -> Transaction:
    """Read one transaction."""
    found = await session.get(Transaction, id_)
    if found is None:
        raise HTTPException(404, "There is no such transaction")
    return found


@app.get("/api/v1/credits/transactions", response_model=list[TransactionOut], dependencies=[Depends(_known)])
async def list_transactions(merchant_id: UUID, session: Session, limit: int = 50) -> Sequence[Transaction]:
    """List the last transactions of a merchant."""
    account = await _account(merchant_id, session)
    newest = select(Transaction).where(Transaction.account_id == account.id).order_by(Transaction.created_at.desc())
    return (await session.scalars(newest.limit(limit))).all()


def main() -> None:
    """Serve on a free port, and print the address in the format of our service."""
    config = uvicorn.Config(app, port=0, loop="uvloop", http="httptools", ws="none", access_log=False, log_config=None)
    listening = config.bind_socket()
    print(f"A plain service on http://127.0.0.1:{listening.getsockname()[1]}, with one worker", flush=True)
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
