"""A log of a capability's hooks, played again: each hook is called as Pydantic AI calls it."""

import asyncio
import builtins
import contextvars
import importlib
import json
from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

from pydantic_ai import ModelResponse, exceptions
from pydantic_ai.messages import TextPart
from pydantic_ai.usage import RequestUsage

from session_lifecycle.integrations.pydantic_ai import SessionCapability

Line = dict[str, Any]


class _Open(NamedTuple):
    """A hook that wraps, and waits for what it wraps."""

    task: asyncio.Task[Any]
    context: contextvars.Context
    """The context of what it wraps."""
    done: asyncio.Future[Any]


class _Run:
    def __init__(self, opened: _Open, ctx: Any) -> None:
        self.opened = opened
        self.ctx = ctx
        self.request: _Open | None = None
        self.tools: dict[str, _Open] = {}


def read(file: Path) -> list[Line]:
    """The lines of a log, with whole ids of runs where the log shows them somewhere."""
    text = file.read_text("utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    for line in lines:
        whole = line.get("run_id")
        if whole is not None:
            text = text.replace(f"…{whole[-8:]}", whole)
    return [json.loads(line) for line in text.splitlines()]


async def play(capability: SessionCapability, lines: Sequence[Line]) -> None:
    """Calls the hooks of the lines, in their order."""
    await _Replay(capability, lines).play()


class _Replay:
    def __init__(self, capability: SessionCapability, lines: Sequence[Line]) -> None:
        self.capability = capability
        self.lines = lines
        self.runs: dict[str, _Run] = {}
        self.current: list[str] = []

    async def play(self) -> None:
        for position, line in enumerate(self.lines):
            method = line["method"]
            if method == "before_model_request":
                await self._begin_request(self.runs[_run_of_request(self.lines[position:], self.current)], line)
            elif method.startswith("wrap_run"):
                await self._run(method, line)
            elif "ctx" in line:
                await self._in_run(method, line, self.runs[line["ctx"]["run_id"]])

    async def _run(self, method: str, line: Line) -> None:
        ctx = _context(line["ctx"])
        if method == "wrap_run>":

            async def call(handler: Any) -> Any:
                return await self.capability.wrap_run(ctx, handler=handler)

            self.runs[ctx.run_id] = _Run(await _enter(call, self._tool_around()), ctx)
            self.current.append(ctx.run_id)
        elif method == "wrap_run!":
            await _leave(self.runs[ctx.run_id].opened, error=_error(line["exc"]))
        else:
            if not self.runs[ctx.run_id].opened.task.done():
                await _leave(self.runs[ctx.run_id].opened, SimpleNamespace(output="It is 7 degrees."))
            self.current.remove(ctx.run_id)

    def _tool_around(self) -> contextvars.Context | None:
        """The context of the tool call that a run begins in."""
        for run_id in reversed(self.current):
            for opened in reversed(self.runs[run_id].tools.values()):
                return opened.context
        return None

    async def _begin_request(self, run: _Run, line: Line) -> None:
        run.ctx = ctx = _context({**vars(run.ctx), "run_step": run.ctx.run_step + 1})
        request = _request(line["rc"])

        async def call(handler: Any) -> Any:
            return await self.capability.wrap_model_request(ctx, request_context=request, handler=handler)

        run.request = await _enter(call, run.opened.context)
        await _within(run.request, self.capability.before_model_request(ctx, request))
        await _within(run.request, self.capability.prepare_model_request(ctx, request))

    async def _in_run(self, method: str, line: Line, run: _Run) -> None:
        if method == "after_model_request" and run.request is not None:
            ctx, response = _context(line["ctx"]), _response(line["response"])
            after = self.capability.after_model_request(ctx, request_context=_request({}), response=response)
            assert await _within(run.request, after) is response
            await _leave(run.request, response)
            run.request = None
        elif method == "wrap_model_request!" and run.request is not None:
            await _leave(run.request, error=_error(line["exc"]))
        elif method == "before_tool_execute":
            await self._begin_tool(line, run)
        elif method == "after_tool_execute":
            await _leave(run.tools.pop(line["call_id"]), line.get("result"))
        elif method == "on_tool_execute_error":
            await _leave(run.tools.pop(line["call_id"]), error=_error(line["error"]))

    async def _begin_tool(self, line: Line, run: _Run) -> None:
        ctx, args, tool_call = _context(line["ctx"]), line.get("args_", {}), cast(Any, SimpleNamespace(**line["call"]))

        async def call(handler: Any) -> Any:
            return await self.capability.wrap_tool_execute(
                ctx, call=tool_call, tool_def=cast(Any, None), args=args, handler=handler
            )

        run.tools[tool_call.tool_call_id] = await _enter(call, run.opened.context)


def _run_of_request(lines: Sequence[Line], current: Sequence[str]) -> str:
    """The line of a request does not tell its run: the next line of a run that is open does."""
    for line in lines:
        run_id = line.get("ctx", {}).get("run_id")
        if run_id in current:
            return str(run_id)
    return current[-1]


async def _enter(call: Callable[[Any], Awaitable[Any]], context: contextvars.Context | None) -> _Open:
    loop = asyncio.get_running_loop()
    entered: asyncio.Future[contextvars.Context] = loop.create_future()
    done: asyncio.Future[Any] = loop.create_future()

    async def handler(*_: Any) -> Any:
        entered.set_result(contextvars.copy_context())
        return await done

    async def called() -> Any:
        return await call(handler)

    task = loop.create_task(called(), context=None if context is None else context.copy())
    await asyncio.wait({task, entered}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        await task
    return _Open(task, entered.result(), done)


async def _within(opened: _Open, call: Awaitable[Any]) -> Any:
    async def called() -> Any:
        return await call

    return await asyncio.get_running_loop().create_task(called(), context=opened.context)


async def _leave(opened: _Open, result: Any = None, error: BaseException | None = None) -> None:
    if error is None:
        opened.done.set_result(result)
        assert await opened.task is result
        return
    opened.done.set_exception(error)
    await asyncio.wait({opened.task})
    if not isinstance(error, asyncio.CancelledError):
        assert opened.task.exception() is error


def _context(told: Line) -> Any:
    agent = told.get("agent")
    return SimpleNamespace(
        run_id=told.get("run_id"),
        conversation_id=told.get("conversation_id"),
        agent=SimpleNamespace(name=agent) if isinstance(agent, str) else agent,
        run_step=told.get("run_step", 0),
        prompt=told.get("prompt"),
    )


def _request(told: Line) -> Any:
    model = SimpleNamespace(model_name=told.get("model"), system=told.get("system"))
    return SimpleNamespace(model=model, attempt=told.get("attempt", 1))


def _response(told: Line) -> ModelResponse:
    usage = dict(told["usage"])
    if "cost" in usage:
        usage["cost"] = Decimal(usage["cost"])
    more = {name: value for name, value in told.items() if name not in {"usage", "timestamp", "parts", "tool_calls"}}
    parts = [TextPart("It is 7 degrees.")]
    return ModelResponse(parts=parts, usage=RequestUsage(**usage), **more)


def _error(told: Line) -> BaseException:
    place, _, name = told["exc"].rpartition(".")
    kind: type[BaseException] = getattr(builtins if place == "builtins" else importlib.import_module(place), name)
    if issubclass(kind, exceptions.ModelHTTPError):
        return kind(told.get("status_code", 500), "gpt-5")
    return kind(told.get("str", ""))
