"""What `measure_drafts.py` asks: five kinds of work, from answers that repeat nothing to answers that are mostly repetition."""

from __future__ import annotations

from dataclasses import dataclass

_REPORT = """\
The city council met on Tuesday evening to discuss the new tram line between the harbour and the university. The mayor, Anna \
Lindqvist, said that the line will open in the spring of 2027 and will cost 412 million euros. Several residents complained \
about the noise of the works. "We have not slept for three weeks," said Peter Holm, who lives in Kanal Street. The chief \
engineer, Maria Duarte, promised that work at night will stop at the end of the month. The council also decided to plant 1,200 \
trees along the route and to build a bicycle lane on both sides. The opposition voted against the plan, because it thinks that \
buses would be cheaper and would be ready two years earlier. The next meeting will be held on the 14th of March in the old town \
hall, and everybody is welcome to ask questions."""

_INTERVIEW = """\
The river Arden has been cleaned for ten years, and for the first time since 1962 salmon have returned to it. Biologists from \
the institute in Norbury counted 340 fish between April and September. "Nobody expected them so early," said Dr. Helen Marsh, \
who leads the project. The water was once so dirty that swimming was forbidden. Two paper mills were closed in 2009, and the \
third one built a new treatment plant that cost 38 million pounds. Farmers have agreed to leave a strip of ten metres along the \
banks without fertiliser. "It costs us some money, but our children can swim again," said farmer Tom Bradley. The government \
wants to use the same plan for four other rivers. Critics say that the programme depends on subsidies which end in 2030."""

_CONTACTS = """\
From the minutes: Present were Julia Becker (julia.becker@example.com, phone 555-0132), Omar Haddad (omar.haddad@example.org, \
phone 555-0178), Li Wei (li.wei@example.net, phone 555-0119) and Carla Rossi (carla.rossi@example.com, phone 555-0164). Omar \
Haddad will send the invoice number INV-2024-0917 to Julia Becker by Friday. Li Wei reported that the server srv-backup-02 was \
replaced on 3 May, and that srv-web-11 must be replaced before 20 June. Carla Rossi asked for access to \
https://wiki.example.com/projects/aurora and to https://wiki.example.com/projects/borealis. The budget is 48,500 euros, of which \
12,750 euros are spent. The next meeting is on 17 May at 10:30 in room 4.12."""

_LOG = """\
2024-05-03 10:14:02 INFO  scheduler started with 12 workers on host node-07
2024-05-03 10:14:09 ERROR connection to database orders-primary refused: too many clients already
2024-05-03 10:14:11 INFO  retrying connection to database orders-primary in 5 seconds
2024-05-03 10:14:16 WARN  request /api/v2/orders/88412 took 4,812 ms, limit is 2,000 ms
2024-05-03 10:14:21 ERROR request /api/v2/orders/88413 failed: upstream payment-gateway timed out after 30 s
2024-05-03 10:14:25 INFO  worker 3 finished job export-invoices-2024-04 with 1,204 records
2024-05-03 10:14:31 ERROR disk /var/lib/spool is 97 percent full, refusing new uploads
2024-05-03 10:14:40 INFO  worker 9 finished job send-reminders with 88 records"""

_CODE = """\
def load_orders(path, limit):
    orders = []
    with open(path, encoding="utf-8") as file:
        for line in file:
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            number, customer, amount = line.split(";")
            orders.append({"number": int(number), "customer": customer, "amount": float(amount)})
            if len(orders) >= limit:
                break
    return orders


def total_by_customer(orders):
    totals = {}
    for order in orders:
        customer = order["customer"]
        totals[customer] = totals.get(customer, 0.0) + order["amount"]
    return totals
"""

_LETTER = """\
Dear Mrs Carter,

thank you for your letter of 12 February about the heating in your flat. Our technician will come on Thursday, 20 February, \
between 8 and 10 in the morning. Please make sure that somebody is at home and that the radiator in the kitchen can be reached. \
If the pump has to be replaced, you will have no warm water for about two hours. You do not have to pay anything for the repair. \
If you have any questions, please call Mr Jensen at 555-0147.

Yours sincerely,
Housing Office North"""

_RECORDS = """\
Order 1041: customer Anna Lindqvist, city Gothenburg, 3 pieces of "oak shelf", price 49.90 each, delivered on 2024-03-02.
Order 1042: customer Peter Holm, city Aarhus, 1 piece of "reading lamp", price 35.00 each, delivered on 2024-03-04.
Order 1043: customer Maria Duarte, city Porto, 12 pieces of "wine glass", price 4.25 each, not delivered yet.
Order 1044: customer Tom Bradley, city Norbury, 2 pieces of "garden chair", price 79.00 each, delivered on 2024-03-09."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """`prediction`: what the answer will mostly be, where a client would know that."""

    text: str
    max_tokens: int = 200
    prediction: str = ""


SETS: dict[str, list[Prompt]] = {
    "chat": [
        Prompt("What can I do on a rainy weekend with two children?"),
        Prompt("Explain to me how a bicycle stays upright."),
        Prompt("Write a short story about a lighthouse keeper who finds a letter."),
        Prompt("What should I think about before I buy a used car?"),
        Prompt("Give me some advice on how to learn to play the piano as an adult."),
        Prompt("Why is the sky blue, and why is it red in the evening?"),
    ],
    "extract": [
        Prompt(f"{_CONTACTS}\n\nExtract every person with e-mail address and phone number, one on each line, as written."),
        Prompt(f"{_LOG}\n\nCopy all lines of this log that contain ERROR or WARN, exactly as they are."),
        Prompt(f"{_REPORT}\n\nList every sentence of the text that contains a number, word for word."),
        Prompt(f"{_INTERVIEW}\n\nList every sentence of the text that names a person or a year, word for word."),
    ],
    "summary": [
        Prompt(f"{_REPORT}\n\nSummarise the text in a few sentences and quote the most important sentences word for word."),
        Prompt(f"{_INTERVIEW}\n\nSummarise the text and support each point with a literal quotation from it."),
        Prompt(f"{_CONTACTS}\n\nSummarise these minutes. Quote names, dates and numbers exactly as they are written."),
        Prompt(f"{_REPORT}\n\n{_INTERVIEW}\n\nSummarise both texts, with quotations of what people said."),
    ],
    "edit": [
        Prompt(
            f"```python\n{_CODE}```\n\nRename the variable `orders` to `records` in this code. Give me the whole code.",
            prediction=_CODE,
        ),
        Prompt(
            f"```python\n{_CODE}```\n\nAdd a docstring to each function of this code and leave the rest as it is. "
            "Give me the whole code.",
            prediction=_CODE,
        ),
        Prompt(
            f"{_LETTER}\n\nWrite this letter again, with Friday, 21 February instead of Thursday, 20 February.",
            prediction=_LETTER,
        ),
        Prompt(f"{_REPORT}\n\nCorrect the spelling of this text. Give me the whole text.", prediction=_REPORT),
    ],
    "json": [
        Prompt(f"{_RECORDS}\n\nWrite these orders as a JSON array with the keys order, customer, city, product, pieces, price."),
        Prompt(f"{_CONTACTS}\n\nWrite the people as a JSON array of objects with the keys name, email and phone."),
        Prompt(f"{_LOG}\n\nWrite this log as a JSON array of objects with the keys time, level and message."),
        Prompt(f"{_REPORT}\n\nWrite the facts of this text as a JSON object with the keys people, dates, amounts, decisions."),
    ],
}
