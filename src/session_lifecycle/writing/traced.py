"""`traced`: a decorator that records the calls of a function as runs, or as steps of the current run."""

import inspect
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import nullcontext
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast, overload

from session_lifecycle.writing.run_block import RunBlock, current_run
from session_lifecycle.writing.session_trace import current_trace
from session_lifecycle.writing.step_block import StepBlock

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@overload
def traced(function: Callable[Arguments, Result], /) -> Callable[Arguments, Result]: ...
@overload
def traced(
    *, name: str | None = None, agent_name: str | None = None, step: str | None = None
) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]: ...
def traced(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    agent_name: str | None = None,
    step: str | None = None,
) -> Any:
    """Records each call of the function as a run of the session around it, or as a step of the run around it.

    A call inside a run is a run below it. A call outside every session block, and a step outside every run, is not
    recorded. Arguments and results are not recorded. What the function returns, raises and yields stays as it is.

    Args:
        function: A function, a coroutine function, or a generator of either kind, whose run lasts until it ends.
        name: The name of the run or step; None: the function's.
        agent_name: The agent of the run.
        step: The kind of step, as `tool`; None: each call is a run.

    Example:
        @traced
        async def answer(question: str) -> str: ...

        @traced(step="tool")
        def search(words: str) -> list[str]: ...
    """

    def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
        title = name or str(getattr(function, "__name__", type(function).__name__))

        def block() -> Any:
            found = _block(title, agent_name, step)
            return nullcontext() if found is None else found

        if inspect.isasyncgenfunction(function):
            return _asynchronous_generator(function, lambda: _block(title, agent_name, step))
        if inspect.isgeneratorfunction(function):
            return _generator(function, lambda: _block(title, agent_name, step))
        if inspect.iscoroutinefunction(function):

            @wraps(function)
            async def traced_coroutine(*arguments: Any, **named: Any) -> Any:
                with block():
                    return await function(*arguments, **named)

            return traced_coroutine

        @wraps(function)
        def traced_function(*arguments: Any, **named: Any) -> Any:
            with block():
                return function(*arguments, **named)

        return traced_function

    return decorated if function is None else decorated(function)


def _block(name: str, agent_name: str | None, step: str | None) -> RunBlock | StepBlock | None:
    run = current_run()
    if step is not None:
        return None if run is None else run.step(step, name)
    session = current_trace()
    if run is not None and (session is None or (session.session_id, session.user_id) == (run.session_id, run.user_id)):
        return run.run(name, agent_name=agent_name)
    return None if session is None else session.run(name, agent_name=agent_name)


def _generator(function: Callable[..., Any], block: Callable[[], RunBlock | StepBlock | None]) -> Callable[..., Any]:
    @wraps(function)
    def traced_generator(*arguments: Any, **named: Any) -> Generator[Any, Any, Any]:
        made = block()
        inner = cast("Generator[Any, Any, Any]", function(*arguments, **named))
        if made is None:
            return (yield from inner)
        made.begin()
        failure: BaseException | None = None
        try:
            with made.active():
                value = next(inner)
            while True:
                # The caller's code between two values is not part of the run.
                try:
                    sent = yield value
                except GeneratorExit:
                    with made.active():
                        inner.close()
                    raise
                except BaseException as thrown:  # noqa: BLE001 - the generator decides what becomes of it
                    with made.active():
                        value = inner.throw(thrown)
                else:
                    with made.active():
                        value = inner.send(sent)
        except StopIteration as end:
            return end.value
        except BaseException as error:
            failure = error
            raise
        finally:
            made.finish(failure)

    return traced_generator


def _asynchronous_generator(
    function: Callable[..., Any], block: Callable[[], RunBlock | StepBlock | None]
) -> Callable[..., Any]:
    @wraps(function)
    async def traced_generator(*arguments: Any, **named: Any) -> AsyncGenerator[Any, Any]:
        made = block()
        inner = cast("AsyncGenerator[Any, Any]", function(*arguments, **named))
        failure: BaseException | None = None
        active: Callable[[], Any] = nullcontext
        if made is not None:
            made.begin()
            active = made.active
        try:
            with active():
                value = await anext(inner)
            while True:
                try:
                    sent = yield value
                except GeneratorExit:
                    with active():
                        await inner.aclose()
                    raise
                except BaseException as thrown:  # noqa: BLE001 - the generator decides what becomes of it
                    with active():
                        value = await inner.athrow(thrown)
                else:
                    with active():
                        value = await inner.asend(sent)
        except StopAsyncIteration:
            return
        except BaseException as error:
            failure = error
            raise
        finally:
            if made is not None:
                made.finish(failure)

    return traced_generator
