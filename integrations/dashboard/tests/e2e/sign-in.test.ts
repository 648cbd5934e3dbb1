/** Who gets in, where the token is kept, and what becomes of a page whose token is taken back. */

import type { Browser } from "playwright-core";
import { afterAll, beforeAll, expect, test } from "vitest";
import { eventually, launch, open, Service, signedIn, signIn } from "./harness";

let browser: Browser;
beforeAll(async () => {
  browser = await launch();
});
afterAll(() => browser.close());

test("a wrong token is named as such, and a right one opens the fleet", async () => {
  const service = await Service.start(["show"]);
  const token = service.token(["read"]);
  const { page } = await open(browser, service.url);
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.getByText("Enter a token.").waitFor();
  await signIn(page, "pw_wrong");
  await page.getByText("The service does not know this token.").waitFor();
  await signIn(page, "not a token at all");
  await page
    .getByText("That is not a token: paste the whole of what power-service token new has printed.")
    .waitFor();
  await signIn(page, token);
  await page.getByRole("link", { name: "Harbour gate" }).waitFor();
});

test("a token without the read scope is refused with the reason", async () => {
  const service = await Service.start(["show"]);
  const { page } = await open(browser, service.url);
  await signIn(page, service.token(["write"]));
  await page.getByText("This token has no read scope: the page needs one.").waitFor();
});

test("the token is in memory alone, and in the session storage where that is asked for", async () => {
  const service = await Service.start(["show"]);
  const { page } = await signedIn(browser, service);
  const kept = () => page.evaluate(() => [localStorage.length, sessionStorage.length, document.cookie]);
  expect(await kept()).toEqual([0, 0, ""]);
  await page.reload();
  await page.getByLabel("Keep it until this tab is closed").check();
  await signIn(page, service.token(["read"]));
  await page.getByRole("link", { name: "Harbour gate" }).waitFor();
  expect(await kept()).toEqual([0, 1, ""]);
  await page.reload();
  await page.getByRole("link", { name: "Harbour gate" }).waitFor();
  await page.getByRole("button", { name: "Sign out" }).click();
  await page.getByLabel("Token").waitFor();
  expect(await kept()).toEqual([0, 0, ""]);
});

test("a token that is revoked ends the session with the reason", async () => {
  const service = await Service.start(["show"]);
  const { page } = await signedIn(browser, service);
  service.revokeAll();
  await page.getByText("The service no longer knows this token. Sign in with another one.").waitFor();
});

test("a service without tokens asks for none", async () => {
  const service = await Service.start(["show"], "--no-auth");
  const { page } = await open(browser, service.url);
  await page.getByRole("link", { name: "Harbour gate" }).waitFor();
  expect(await page.getByRole("button", { name: "Sign out" }).count()).toBe(0);
});

test("a token that is bound to a device shows that device alone", async () => {
  const service = await Service.start(["show"]);
  const { page } = await open(browser, service.url);
  await signIn(page, service.token(["read"], "edge-002"));
  await page.getByRole("link", { name: "North mast" }).waitFor();
  await page.getByText("1 device", { exact: true }).waitFor();
  expect(await page.locator(".fleet-item").count()).toBe(1);
});

test("a service that is gone is said to be gone, and tried again", async () => {
  const service = await Service.start(["show"], "--no-auth");
  const { page } = await open(browser, service.url);
  await page.getByRole("link", { name: "Harbour gate" }).waitFor();
  await page.route("**/v1/devices", (route) => route.abort());
  await page.reload();
  await page.getByText("The service does not answer").waitFor();
  await page.unroute("**/v1/devices");
  await page.getByRole("button", { name: "Try again" }).click();
  await eventually(() => page.getByRole("link", { name: "Harbour gate" }).isVisible(), "the fleet");
});
