"""The live screen of `poise top`, drawn with Textual: the picture of the server, and what an operator does with its requests."""

import asyncio
from typing import ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.events import Key
from textual.screen import ModalScreen, Screen
from textual.widgets import DataTable, Footer, Label, Sparkline, Static

from poise.console.client import ConsoleError
from poise.console.frame import as_text, bars, cells, classes, header
from poise.console.picture import SORTS, Picture, RequestRow, Watch, ordered

PERIOD_S = 1.0
ROWS_MAX = 500
COLUMNS = ("id", "class", "state", "prompt", "cached", "output", "age", "tenant")
ACTIONS = {"pause": "Pause", "resume": "Resume", "downgrade": "Downgrade to background work", "cancel": "Cancel"}
HELP = """\
q       quit
enter   why is the chosen request where it is?
s       sort by age, state, tokens, class
p r d   pause, resume, downgrade the chosen request: for operators
c       cancel it: for operators, and for its own tenant
?       this

An action is asked back; y does it, anything else does not.
The curves are the last three minutes, the newest at the right: output
tokens a second; p95 of the time to the first token (TTFT) of interactive
choices; choices in the queue. ITL is the time between two tokens."""


class Panel(ModalScreen[None]):
    """Something to read over the rest."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,enter,q,question_mark", "dismiss", "close")]

    def __init__(self, text: Text) -> None:
        super().__init__()
        self.text = text

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="panel"):
            yield Static(self.text)
        yield Footer()


class Question(ModalScreen[bool]):
    """Is it meant? Only y says so."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def compose(self) -> ComposeResult:
        with Vertical(id="panel"):
            yield Label(f"{self.text}?  y / n", markup=False)

    def on_key(self, event: Key) -> None:
        event.stop()
        self.dismiss(event.key == "y")


class TopApp(App[None]):
    """Looks every `period_s` seconds, and at once after an action."""

    ENABLE_COMMAND_PALETTE = False
    TITLE = "poise top"
    CSS = """
    #head { height: auto; }
    #notice { height: 1; color: $warning; }
    #classes { height: auto; margin: 1 0; }
    #middle { height: auto; }
    #curves { width: 1fr; height: auto; margin-right: 2; }
    #bars { width: auto; height: auto; }
    #memory { height: auto; color: $text-muted; }
    #requests { height: 1fr; margin-top: 1; }
    #panel { width: 90%; height: auto; max-height: 90%; padding: 1 2; background: $surface; border: round $primary; }
    Panel, Question { align: center middle; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "quit"),
        Binding("enter", "explain", "why", priority=False),
        Binding("s", "sort", "sort"),
        Binding("p", "control('pause')", "pause"),
        Binding("r", "control('resume')", "resume"),
        Binding("d", "control('downgrade')", "downgrade"),
        Binding("c", "control('cancel')", "cancel"),
        Binding("question_mark", "help", "help"),
    ]

    def __init__(self, source: Watch, period_s: float = PERIOD_S) -> None:
        super().__init__()
        self.source = source
        self.sort_by = SORTS[0]
        self._period_s = period_s
        self._picture: Picture | None = None
        self._rows: list[RequestRow] = []
        self._was_away = False

    def compose(self) -> ComposeResult:
        yield Static(f"poise at {self.source.client.url} ...", id="head", markup=False)
        yield Label("", id="notice", markup=False)
        yield Static(id="classes")
        with Horizontal(id="middle"):
            with Vertical(id="curves"):
                for i in range(3):
                    yield Label("", id=f"curve-{i}", markup=False)
                    yield Sparkline([], id=f"spark-{i}")
            yield Static(id="bars")
        yield Static(id="memory", markup=False)
        table: DataTable[Text] = DataTable(id="requests", cursor_type="row", zebra_stripes=True)
        yield table
        yield Footer()

    def on_mount(self) -> None:
        self._table.add_columns(*COLUMNS)
        self._table.focus()
        self.run_worker(self._look_forever(), name="look", exit_on_error=True)

    async def look(self) -> None:
        """Ask the server and draw what it says; without an answer, say so and keep the last picture."""
        try:
            picture = await self.source.look()
        except ConsoleError as error:
            self._was_away = True
            self.tell(f"{error}; trying again")
            return
        if self._was_away:
            self._was_away = False
            self.tell("")
        self._draw(picture)

    def tell(self, text: str) -> None:
        """One line for the user."""
        if self._is_drawn:
            self._base.query_one("#notice", Label).update(text)

    @property
    def chosen(self) -> RequestRow | None:
        row = self._table.cursor_row
        return self._rows[row] if 0 <= row < len(self._rows) else None

    def on_data_table_row_selected(self) -> None:
        self.action_explain()

    def action_explain(self) -> None:
        if (row := self.chosen) is not None:
            self.run_worker(self._explain(row.id), group="explain", exclusive=True)

    def action_sort(self) -> None:
        self.sort_by = SORTS[(SORTS.index(self.sort_by) + 1) % len(SORTS)]
        self.tell(f"sorted by {self.sort_by}")
        if self._picture is not None:
            self._draw(self._picture)

    def action_help(self) -> None:
        self.push_screen(Panel(Text(HELP)))

    def action_control(self, action: str) -> None:
        """Ask whether it is meant, then do it."""
        row = self.chosen
        if row is None:
            self.tell("no request is chosen")
            return

        def answered(is_meant: bool | None) -> None:
            if is_meant:
                self.run_worker(self._control(row.id, action), group="control")

        self.push_screen(Question(f"{ACTIONS[action]} {row.id}"), answered)

    @property
    def _base(self) -> Screen[object]:
        """The screen below whatever lies over it."""
        return self.screen_stack[0]

    @property
    def _is_drawn(self) -> bool:
        """False while it closes: an answer may still come."""
        return bool(self.screen_stack) and bool(self._base.query("#requests"))

    @property
    def _table(self) -> DataTable[Text]:
        return self._base.query_one("#requests", DataTable)

    async def _look_forever(self) -> None:
        while self.is_running:
            await self.look()
            await asyncio.sleep(self._period_s)

    async def _explain(self, response_id: str) -> None:
        try:
            answer = as_text(await self.source.client.explanation(response_id))
        except ConsoleError as error:
            self.tell(str(error))
            return
        self.push_screen(Panel(answer))

    async def _control(self, response_id: str, action: str) -> None:
        is_own = action == "cancel" and self._picture is not None and not self._picture.is_operator
        try:
            await self.source.client.post(f"/{'v1' if is_own else 'admin'}/requests/{response_id}/{action}")
        except ConsoleError as error:
            self.tell(f"{action}: {error}")
            return
        self.tell(f"{action}: done, {response_id}")
        await self.look()

    def _draw(self, picture: Picture) -> None:
        if not self._is_drawn:
            return
        self._picture = picture
        self._base.query_one("#head", Static).update(header(picture))
        self._base.query_one("#classes", Static).update(classes(picture))
        self._base.query_one("#bars", Static).update(bars(picture))
        self._base.query_one("#memory", Static).update("\n".join(picture.memory))
        for i, curve in enumerate(picture.curves):
            self._base.query_one(f"#curve-{i}", Label).update(f"{curve.name} {curve.now}")
            self._base.query_one(f"#spark-{i}", Sparkline).data = curve.values
        self._list(ordered(picture.requests, self.sort_by)[:ROWS_MAX])

    def _list(self, rows: list[RequestRow]) -> None:
        """The requests; the chosen one stays chosen, wherever it is now."""
        chosen, table = self.chosen, self._table
        self._rows = rows
        table.clear()
        for row in rows:
            table.add_row(*cells(row), Text(row.tenant or ""), key=row.id)
        for place, row in enumerate(rows):
            if chosen is not None and row.id == chosen.id:
                table.move_cursor(row=place, animate=False)
