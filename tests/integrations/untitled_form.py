"""Agents whose answers have a form without a title, as a program: given a folder and the URL of a server."""

from __future__ import annotations

import sys

from langchain.agents import create_agent
from langchain.agents.structured_output import ToolStrategy
from langchain_openai import ChatOpenAI

import langchain_ibidem

FORM = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
ASKED = {"messages": [("user", "What is the capital of France?")]}

if __name__ == "__main__":
    path, url = sys.argv[1:]
    model = ChatOpenAI(model="m", api_key="k", base_url=url, max_retries=0)
    middleware = langchain_ibidem.IbidemMiddleware(path=f"{path}/middleware")
    agent = create_agent(model, [], response_format=ToolStrategy(FORM), middleware=[middleware])
    print(agent.invoke(ASKED)["structured_response"]["city"])
    langchain_ibidem.install(path=f"{path}/global")
    for form in (ToolStrategy(FORM), FORM):
        agent = create_agent(model, [], response_format=form)
        print(agent.invoke(ASKED)["structured_response"]["city"])
